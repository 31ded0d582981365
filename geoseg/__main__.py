"""``python -m geoseg`` is ``geoseg``, for those who have a Python and not its folder on the search path."""

from geoseg.cli import main

if __name__ == "__main__":
    main(prog_name="geoseg")
