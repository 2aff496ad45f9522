"""Reports that can be mailed: pages, charts and plots."""
