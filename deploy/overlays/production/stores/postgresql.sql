-- The databases of products and inventory, each with a role that owns it and cannot connect to the other: an example, for a
-- superuser (or a managed server's administrator) in psql. Then set the passwords of secrets/*.env, which \password keeps
-- out of the server's log:
--
--   \password products
--   \password inventory
--
-- In pg_hba.conf, or the provider's settings, only these lines, and nothing without TLS. (+products is products and the
-- users that are members of it, which a rotation of the password needs.)
--
--   hostssl  products   +products   10.0.0.0/8  scram-sha-256
--   hostssl  inventory  +inventory  10.0.0.0/8  scram-sha-256
--
-- The service and its `migrate` share a role, which owns the tables and may do nothing outside its database. The connection
-- limits are those of 12 pods and one more during a rollout, with the pool sizes of config/*.yaml.
CREATE ROLE products LOGIN NOSUPERUSER NOCREATEDB NOCREATEROLE NOREPLICATION CONNECTION LIMIT 150;
CREATE ROLE inventory LOGIN NOSUPERUSER NOCREATEDB NOCREATEROLE NOREPLICATION CONNECTION LIMIT 220;
CREATE DATABASE products OWNER products;
CREATE DATABASE inventory OWNER inventory;
REVOKE ALL ON DATABASE products FROM PUBLIC;
REVOKE ALL ON DATABASE inventory FROM PUBLIC;
