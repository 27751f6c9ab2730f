"""Result files drawn as pages and figures."""
