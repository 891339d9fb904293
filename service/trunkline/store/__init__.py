"""Every SQL statement of the service; a method is one statement or one transaction."""
