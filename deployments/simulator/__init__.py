"""An engine without a GPU: in go requests and a card's data sheet, out come tokens at computed times."""
