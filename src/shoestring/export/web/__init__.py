"""A folder for a plain file server: a page that answers inside the browser, with the model beside it."""
