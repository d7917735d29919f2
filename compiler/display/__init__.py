"""What people see: progress and errors, tables in a terminal, and the page of a report."""
