"""What an archive policy says, and the facts and checks it is held against."""
