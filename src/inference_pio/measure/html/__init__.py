"""The report as one self-contained HTML page: what is to be seen is computed here, and the template only places it."""
