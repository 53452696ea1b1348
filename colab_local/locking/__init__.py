"""From environments/ to lockfiles/: reads what is wanted, solves it, writes what we got."""
