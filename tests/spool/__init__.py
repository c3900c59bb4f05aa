"""The spool keeps every record over any ending, or says what is lost."""
