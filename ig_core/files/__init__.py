"""Safe readers of files from elsewhere: no file that is read here runs code."""
