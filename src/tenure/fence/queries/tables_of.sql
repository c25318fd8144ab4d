-- A table and all its partitions, since a partition can be written directly.
SELECT c.oid, c.oid::regclass::text AS name, n.nspname AS schema, c.relname AS relation, c.relkind::text AS kind,
       EXISTS (SELECT FROM pg_attribute AS a
               WHERE a.attrelid = c.oid AND a.attname = 'fencing_token' AND NOT a.attisdropped) AS has_token,
       (SELECT f.resource FROM tenure.fenced_table AS f WHERE f.relation = c.oid LIMIT 1) AS fenced_for
FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace
WHERE c.oid = to_regclass(%(table)s)
   OR c.oid IN (SELECT p.relid FROM pg_partition_tree(to_regclass(%(table)s)) AS p)
ORDER BY c.oid
