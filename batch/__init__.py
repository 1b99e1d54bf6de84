"""Many pictures from a workflow and a table: rows become jobs, jobs become pictures, each once.

``table`` and ``grid`` give rows, ``columns`` says where their cells go, ``jobs`` makes jobs of
them, ``queue`` orders these, workers draw them, and the manifest says what is done.
"""
