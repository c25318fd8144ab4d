SELECT EXISTS (
    SELECT FROM pg_trigger
    WHERE tgrelid = %(table)s::oid AND tgname = %(trigger)s AND tgenabled = 'A' AND tgfoid = to_regproc(%(check)s)
      AND encode(tgargs, 'escape') = %(resource)s || '\000' || %(scope)s || '\000'
) AS present
