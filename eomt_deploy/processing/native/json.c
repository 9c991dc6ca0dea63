/* A JSON reader (RFC 8259) for trusted and hostile text: it never reads beyond the text, and its
   recursion is limited. */
#include "json.h"

#include <string.h>

enum { MAX_DEPTH = 64 };

typedef struct {
    const char *at, *end;
    int depth;
    const char *problem;
} Reader;

static int refuse(Reader *reader, const char *problem) {
    if (!reader->problem) reader->problem = problem;
    return 0;
}

static const char *skip_space(const char *at) {
    while (*at == ' ' || *at == '\t' || *at == '\n' || *at == '\r') at++;
    return at;
}

/* The next character, or 0 at the end of the text. */
static char peek(const Reader *reader) {
    return reader->at < reader->end ? *reader->at : 0;
}

static char peek_token(Reader *reader) {
    while (peek(reader) == ' ' || peek(reader) == '\t' || peek(reader) == '\n' ||
           peek(reader) == '\r')
        reader->at++;
    return peek(reader);
}

static int is_digit(char c) { return c >= '0' && c <= '9'; }

static int hex_digit(char c) {
    return is_digit(c) ? c - '0' : c >= 'a' && c <= 'f' ? c - 'a' + 10
         : c >= 'A' && c <= 'F' ? c - 'A' + 10 : -1;
}

/* Check one character of UTF-8 that is not ASCII. */
static int check_utf8(Reader *reader) {
    const unsigned char *at = (const unsigned char *)reader->at;
    const int length = at[0] >= 0xF0 ? 4 : at[0] >= 0xE0 ? 3 : 2;
    if (at[0] < 0xC2 || at[0] > 0xF4 || reader->end - reader->at < length)
        return refuse(reader, "it is not UTF-8");
    for (int i = 1; i < length; i++)
        if ((at[i] & 0xC0) != 0x80) return refuse(reader, "it is not UTF-8");
    if ((at[0] == 0xE0 && at[1] < 0xA0) || (at[0] == 0xED && at[1] > 0x9F) ||
        (at[0] == 0xF0 && at[1] < 0x90) || (at[0] == 0xF4 && at[1] > 0x8F))
        return refuse(reader, "it is not UTF-8");
    reader->at += length;
    return 1;
}

static int check_string(Reader *reader) {
    if (peek(reader) != '"') return refuse(reader, "a string is missing");
    reader->at++;
    for (;;) {
        const char c = peek(reader);
        if (c == '"') {
            reader->at++;
            return 1;
        }
        if ((unsigned char)c < 0x20) return refuse(reader, "a string does not end");
        if ((unsigned char)c >= 0x80) {
            if (!check_utf8(reader)) return 0;
            continue;
        }
        reader->at++;
        if (c != '\\') continue;
        const char escaped = peek(reader);
        if (!escaped || !strchr("\"\\/bfnrtu", escaped))
            return refuse(reader, "a string has an unknown escape");
        reader->at++;
        for (int i = 0; escaped == 'u' && i < 4; i++, reader->at++)
            if (hex_digit(peek(reader)) < 0)
                return refuse(reader, "a string has an unknown escape");
    }
}

static int check_digits(Reader *reader) {
    if (!is_digit(peek(reader))) return refuse(reader, "a value is not valid");
    while (is_digit(peek(reader))) reader->at++;
    return 1;
}

static int check_number(Reader *reader) {
    if (peek(reader) == '-') reader->at++;
    if (peek(reader) == '0')
        reader->at++;
    else if (!check_digits(reader))
        return 0;
    if (peek(reader) == '.') {
        reader->at++;
        if (!check_digits(reader)) return 0;
    }
    if (peek(reader) == 'e' || peek(reader) == 'E') {
        reader->at++;
        if (peek(reader) == '+' || peek(reader) == '-') reader->at++;
        if (!check_digits(reader)) return 0;
    }
    return 1;
}

static int check_word(Reader *reader, const char *word) {
    for (; *word; word++, reader->at++)
        if (peek(reader) != *word) return refuse(reader, "a value is not valid");
    return 1;
}

static int check_value(Reader *reader);

static int check_container(Reader *reader, char open) {
    const char close = open == '{' ? '}' : ']';
    if (++reader->depth > MAX_DEPTH) return refuse(reader, "it is nested too deeply");
    reader->at++;
    for (int count = 0;; count++) {
        char c = peek_token(reader);
        if (c == close && count == 0) break;
        if (open == '{') {
            if (!check_string(reader)) return 0;
            if (peek_token(reader) != ':') return refuse(reader, "a colon is missing");
            reader->at++;
        }
        if (!check_value(reader)) return 0;
        c = peek_token(reader);
        if (c == close) break;
        if (c != ',') return refuse(reader, "a comma or the end of a list is missing");
        reader->at++;
    }
    reader->at++;
    reader->depth--;
    return 1;
}

static int check_value(Reader *reader) {
    switch (peek_token(reader)) {
        case '{': case '[': return check_container(reader, peek(reader));
        case '"': return check_string(reader);
        case 't': return check_word(reader, "true");
        case 'f': return check_word(reader, "false");
        case 'n': return check_word(reader, "null");
        default: return check_number(reader);
    }
}

const char *check_json(const char *text, size_t bytes) {
    Reader reader = {text, text + bytes, 0, NULL};
    if (peek_token(&reader) != '{') return "it is not a JSON object";
    if (check_value(&reader) && (peek_token(&reader), reader.at != reader.end))
        refuse(&reader, "there is text after its end");
    return reader.problem;
}

const char *first_value(const char *text) { return skip_space(text); }

char kind_of(const char *value) { return strchr("{[\"tfn", *value) ? *value : 0; }

static const char *skip_string(const char *at) {
    for (at++; *at != '"'; at++) at += *at == '\\';
    return at + 1;
}

/* The position behind a value. */
static const char *skip_value(const char *at) {
    if (*at == '"') return skip_string(at);
    if (*at == '{' || *at == '[') {
        int depth = 0;
        do {
            if (*at == '"') {
                at = skip_string(at);
                continue;
            }
            depth += (*at == '{' || *at == '[') - (*at == '}' || *at == ']');
            at++;
        } while (depth);
        return at;
    }
    while (is_digit(*at) || (*at >= 'a' && *at <= 'z') || *at == 'E' || *at == '+' || *at == '-' ||
           *at == '.')
        at++;
    return at;
}

const char *first_entry(const char *container) {
    const char *at = skip_space(container + 1);
    return *at == '}' || *at == ']' ? NULL : at;
}

const char *value_of(const char *key) {
    return skip_space(skip_space(skip_string(key)) + 1); /* behind the colon */
}

const char *next_entry(const char *container, const char *entry) {
    const char *at = skip_space(skip_value(*container == '{' ? value_of(entry) : entry));
    return *at == ',' ? skip_space(at + 1) : NULL;
}

const char *find(const char *object, const char *key) {
    const char *found = NULL;
    for (const char *at = first_entry(object); at; at = next_entry(object, at))
        if (is_text(at, key)) found = value_of(at);
    return found;
}

static int hex_unit(const char *at) {
    int unit = 0;
    for (int i = 0; i < 4; i++) unit = unit * 16 + hex_digit(at[i]);
    return unit;
}

/* Decode the character at *at, which is not a closing quote, and move behind it. */
static int32_t next_character(const char **at) {
    const unsigned char *s = (const unsigned char *)*at;
    if (s[0] == '\\') {
        *at += 2;
        switch (s[1]) {
            case 'b': return '\b';
            case 'f': return '\f';
            case 'n': return '\n';
            case 'r': return '\r';
            case 't': return '\t';
            case 'u': break;
            default: return s[1];
        }
        const int high = hex_unit(*at);
        *at += 4;
        if (high >= 0xD800 && high < 0xDC00 && (*at)[0] == '\\' && (*at)[1] == 'u') {
            const int low = hex_unit(*at + 2);
            if (low >= 0xDC00 && low < 0xE000) {
                *at += 6;
                return 0x10000 + ((high - 0xD800) << 10) + (low - 0xDC00);
            }
        }
        return high;
    }
    if (s[0] < 0x80) return *at += 1, s[0];
    if (s[0] < 0xE0) return *at += 2, (s[0] & 0x1F) << 6 | (s[1] & 0x3F);
    if (s[0] < 0xF0) return *at += 3, (s[0] & 0x0F) << 12 | (s[1] & 0x3F) << 6 | (s[2] & 0x3F);
    *at += 4;
    return (s[0] & 0x07) << 18 | (s[1] & 0x3F) << 12 | (s[2] & 0x3F) << 6 | (s[3] & 0x3F);
}

int is_text(const char *value, const char *name) {
    if (*value != '"') return 0;
    const char *at = value + 1;
    while (*at != '"')
        if (next_character(&at) != *name++ || !name[-1]) return 0;
    return !*name;
}

int64_t read_text(const char *value, char *target, size_t *bytes) {
    if (*value != '"') return -1;
    const char *at = value + 1;
    int64_t characters = 0;
    size_t length = 0;
    for (; *at != '"'; characters++) {
        const int32_t c = next_character(&at);
        if (c < 0x20 || (c >= 0x7F && c < 0xA0) || c == 0x2028 || c == 0x2029 ||
            (c >= 0xD800 && c < 0xE000))
            return -1;
        if (!target) continue;
        if (c < 0x80) {
            target[length++] = (char)c;
        } else {
            const int more = c < 0x800 ? 1 : c < 0x10000 ? 2 : 3;
            static const int lead[] = {0, 0xC0, 0xE0, 0xF0};
            target[length++] = (char)(lead[more] | c >> 6 * more);
            for (int i = more - 1; i >= 0; i--) target[length++] = (char)(0x80 | (c >> 6 * i & 0x3F));
        }
    }
    if (target) target[length++] = 0, *bytes = length;
    return characters;
}

int read_integer(const char *value, int64_t minimum, int64_t maximum, int64_t *number) {
    const char *at = value + (*value == '-');
    int64_t found = 0;
    if (!is_digit(*at)) return 0;
    for (int count = 0; is_digit(*at); at++, count++) {
        if (count == 18) return 0; /* all maxima are smaller */
        found = found * 10 + (*at - '0');
    }
    if (*at == '.' || *at == 'e' || *at == 'E') return 0;
    if (*value == '-') found = -found;
    if (found < minimum || found > maximum) return 0;
    *number = found;
    return 1;
}
