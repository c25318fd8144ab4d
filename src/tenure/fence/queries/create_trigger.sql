CREATE OR REPLACE TRIGGER {trigger} AFTER {event} ON {table} {transition}
    FOR EACH STATEMENT EXECUTE FUNCTION {check}({resource}, {scope});
ALTER TABLE {table} ENABLE ALWAYS TRIGGER {trigger};
