"""``python -m dp_ray``."""

from dp_ray.imports import search_users_folders_last

search_users_folders_last()  # Python puts the working directory first here

from dp_ray.cli import main  # noqa: E402

main()
