-- Settings of one raise, to the end of its transaction. The raise is durable whatever the server's default (R22);
-- a raiser that is paused with the lock in its hands loses it by itself.
SELECT set_config('synchronous_commit', 'on', true),
       set_config('lock_timeout', '100ms', true),
       set_config('idle_in_transaction_session_timeout', '1s', true),
       pg_backend_pid() AS pid
