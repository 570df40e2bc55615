"""`python -m lowbit_vit` is `lowbit-vit`."""

from lowbit_vit.cli import main

if __name__ == "__main__":
    main()
