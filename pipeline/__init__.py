"""The super-resolution workflow: pictures to patch set, training, evaluation, report; one module a stage."""
