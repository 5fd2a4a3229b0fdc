"""What one request may hold, field by field, and what follows from it for each method.

``fields`` is the table, ``methods`` derives the bounds of every method from it, ``checks`` makes
what checks a request, ``answers`` says the same of what is sent back.
"""
