/* Reading of JSON without copies. A value is a pointer to its first character, in text that
   check_json has accepted. */
#pragma once

#include <stddef.h>
#include <stdint.h>

#ifdef EOMT_LIBRARY
#include "prefix.h"
#endif

/* Check that a text is one JSON object in UTF-8. Return NULL, or what is wrong, in words. */
const char *check_json(const char *text, size_t bytes);

/* The object of an accepted text. */
const char *first_value(const char *text);

/* Iterate over the entries of a list, or over the keys of an object, whose value is value_of(key).
   first_entry and next_entry return NULL if there is no entry left. */
const char *first_entry(const char *container);
const char *next_entry(const char *container, const char *entry);
const char *value_of(const char *key);

/* The value of a key; if it occurs several times, the last one counts. NULL if it is missing. */
const char *find(const char *object, const char *key);

/* Whether a string is equal to a name in ASCII. */
int is_text(const char *value, const char *name);

/* Decode a string to `target` as UTF-8, terminated by 0: at most as many bytes as the string has
   in JSON with its quotes. Return the number of characters, or -1 if it is not a string, or contains
   control characters, line separators or surrogates. A target of NULL only counts. */
int64_t read_text(const char *value, char *target, size_t *bytes);

/* Read an integer or a number from 0 to 1. Return 0 if the value is something else. */
int read_integer(const char *value, int64_t minimum, int64_t maximum, int64_t *number);
int read_share(const char *value, double *number);

/* The first character of a value: { [ " t f n, or 0 for a number. */
char kind_of(const char *value);
