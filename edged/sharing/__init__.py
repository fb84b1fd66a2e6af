"""Load shared over a group: the documents that members exchange, and who takes what. Pure: no clock, disk or broker."""
