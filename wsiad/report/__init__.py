"""Write the reports: a page about results, and a page about a tile store."""
