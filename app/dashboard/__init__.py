"""Static files of the dashboard at `/`: unbundled JavaScript modules and vendored libraries."""
