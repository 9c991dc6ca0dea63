/* Version, memory and error messages of the library. */
#include <stdarg.h>

#include "library.h"

static _Thread_local char message[320];

int32_t eomt_abi_version(void) { return EOMT_ABI_VERSION; }

const char *eomt_error_message(void) { return message; }

void *eomt_alloc(size_t bytes) { return malloc(bytes ? bytes : 1); }

void eomt_free(void *memory) { free(memory); }

static size_t append(size_t length, const char *text) {
    while (*text && length < sizeof message - 1) message[length++] = *text++;
    return length;
}

int fail(int code, const char *format, ...) {
    va_list values;
    va_start(values, format);
    size_t length = 0;
    for (; *format; format++) {
        if (format[0] == '%' && format[1] == 's') {
            length = append(length, va_arg(values, const char *));
            format++;
        } else if (format[0] == '%' && format[1] == 'd') {
            char digits[16], *first = digits + sizeof digits - 1;
            const int value = va_arg(values, int);
            unsigned rest = value < 0 ? 0u - (unsigned)value : (unsigned)value;
            *first = 0;
            do *--first = (char)('0' + rest % 10);
            while (rest /= 10);
            if (value < 0) *--first = '-';
            length = append(length, first);
            format++;
        } else {
            const char one[] = {*format, 0};
            length = append(length, one);
        }
    }
    va_end(values);
    message[length] = 0;
    return code;
}

int kernel_error(int code) {
    if (code == NO_MEMORY) return fail(EOMT_NO_MEMORY, "There is not enough memory.");
    return fail(EOMT_WRONG_ARGUMENT, "The sizes of the image or of the model are too large.");
}
