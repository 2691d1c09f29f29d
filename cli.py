"""Command line: `python cli.py fit|validate|test|predict --config configs/NAME.yaml` (or `bayes-rl`)."""

from bayes_rl.cli import main

if __name__ == "__main__":
    main()
