"""Finding tickets, and the controls a ticket's row never stands without."""
