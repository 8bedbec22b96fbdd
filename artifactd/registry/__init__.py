"""Local and remote repositories: names, blobs, uploads, manifests, lists."""
