"""What Onward has for particular frameworks, a module for each; none is imported unless you import it."""
