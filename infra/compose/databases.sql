-- Roles and databases, created once when the volume is new; psql reads the passwords from the secrets' files.
\set airflow_password `cat /run/secrets/airflow-database-password`
\set mlflow_password `cat /run/secrets/mlflow-database-password`
CREATE ROLE airflow LOGIN PASSWORD :'airflow_password';
CREATE ROLE mlflow LOGIN PASSWORD :'mlflow_password';
CREATE DATABASE airflow OWNER airflow;
CREATE DATABASE mlflow OWNER mlflow;
CREATE DATABASE mlflow_users OWNER mlflow;
REVOKE CONNECT ON DATABASE airflow, mlflow, mlflow_users FROM PUBLIC;
