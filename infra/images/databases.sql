-- Users and permissions of MLflow have a database of their own: the schemas of both would use the same table.
CREATE DATABASE mlflow_auth;
