"""Everything people look at: reports, comparison tables, model cards and the results page."""
