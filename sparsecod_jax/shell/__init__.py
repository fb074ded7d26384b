"""What does a person at the terminal, or a script, see of a program: words, signals, exit codes?"""
