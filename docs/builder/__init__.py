"""The builder of the site: it runs the code of pages and writes those of the API."""
