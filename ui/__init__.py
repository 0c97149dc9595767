"""What the pages share: charts, components, the state kept in the URL. The only package besides pages that draws."""
