"""Object stores and metadata backends that come with blobstore."""
