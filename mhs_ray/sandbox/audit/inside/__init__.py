"""What runs inside a container and tries to get out; standard library only, packed into an image by `audit.image`."""
