"""``python -m cascade_kd`` is the command line."""

from cascade_kd.cli import main

if __name__ == "__main__":
    main()
