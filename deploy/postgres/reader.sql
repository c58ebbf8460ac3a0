-- What --replica reads, after the first `tapewatch db upgrade`: history, and neither accounts nor the secrets of channels.
GRANT SELECT ON bars_1m, alert_history, alert_marks, audit_log TO tapewatch_reader;
