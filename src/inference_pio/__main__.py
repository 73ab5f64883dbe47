"""`python -m inference_pio` is `pio`."""

from inference_pio.cli import main

if __name__ == "__main__":
    main()
