-- Three users of the store, for psql, as an administrator of the server, in the database that tapewatch gets:
--
--     createdb tapewatch
--     psql -d tapewatch -f deploy/postgres/roles.sql
--     psql -d tapewatch -c '\password tapewatch_owner' -c '\password tapewatch_app' -c '\password tapewatch_reader'
--
-- tapewatch_owner makes and upgrades the tables (tapewatch db upgrade) and is used for nothing else. tapewatch_app reads
-- and writes rows: all roles. tapewatch_reader reads history, for --replica; see reader.sql. It may be run again.
\set ON_ERROR_STOP on

SELECT format('CREATE ROLE %I LOGIN', name)
FROM unnest(ARRAY['tapewatch_owner', 'tapewatch_app', 'tapewatch_reader']) AS name
WHERE NOT EXISTS (SELECT FROM pg_roles WHERE rolname = name) \gexec

ALTER DATABASE :"DBNAME" OWNER TO tapewatch_owner;
REVOKE ALL ON DATABASE :"DBNAME" FROM PUBLIC;
-- Minute bars arrive by way of a temporary table.
GRANT CONNECT, TEMPORARY ON DATABASE :"DBNAME" TO tapewatch_app;
GRANT CONNECT ON DATABASE :"DBNAME" TO tapewatch_reader;

ALTER SCHEMA public OWNER TO tapewatch_owner;
REVOKE ALL ON SCHEMA public FROM PUBLIC;
GRANT USAGE ON SCHEMA public TO tapewatch_app, tapewatch_reader;

-- Of what the owner makes from now on.
ALTER DEFAULT PRIVILEGES FOR ROLE tapewatch_owner IN SCHEMA public
    GRANT SELECT, INSERT, UPDATE, DELETE ON TABLES TO tapewatch_app;
ALTER DEFAULT PRIVILEGES FOR ROLE tapewatch_owner IN SCHEMA public GRANT USAGE ON SEQUENCES TO tapewatch_app;
ALTER DEFAULT PRIVILEGES FOR ROLE tapewatch_owner IN SCHEMA public GRANT EXECUTE ON FUNCTIONS TO tapewatch_app;
