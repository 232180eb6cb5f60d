"""What the platform does for its users, once: the API's routes, the console and the tests call these."""
