"""Reports on finished runs: tables and figures, in files and on one page."""
