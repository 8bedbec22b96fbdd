"""What a repository is: names, blobs, uploads, manifests, listings."""
