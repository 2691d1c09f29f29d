"""`python -m bayes_rl`: the command line."""

from bayes_rl.cli import main

if __name__ == "__main__":
    main()
