"""The page that shows what runs did: what their folders tell, which charts that makes, the HTML."""
