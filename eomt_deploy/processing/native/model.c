/* The description of a model: spec.py in C. It accepts what Python accepts. */
#include "json.h"
#include "library.h"

enum { MAX_LENGTH = 8 << 20, MAX_NAME = 255, SCHEMA = 1, MIN_SIDE = 8, MAX_INPUT_SIDE = 16384 };
enum { MAX_CLASSES = 16384, MAX_BATCH = 65536, MAX_ENTRIES = 1000, MAX_WORDS = 100000 };
static const int64_t MAX_MASK_LOGITS = (int64_t)1 << 31;
static const int64_t MAX_PARAMETERS = 1000000000000000;

/* Names of fields and values end with NULL. */
static const char *const FIELDS[] = {
    "name", "task", "image_size", "patch_size", "num_queries", "num_blocks", "num_upscale",
    "classes", "resize", "thresholds", "backbone", "precision", "batch", "provenance",
    "schema_version", NULL};
static const char *const CLASS_FIELDS[] = {"id", "name", "thing", "color", NULL};
static const char *const THRESHOLDS[] = {"score", "mask", "overlap", NULL}; /* as EOMT_SCORE, … */
static const char *const BACKBONE_FIELDS[] = {
    "family", "width", "depth", "heads", "mlp", "registers", "parameters", NULL};
static const char *const TASKS[] = {"semantic", "instance", "panoptic", NULL};
static const char *const RULES[] = {"letterbox", "windows", NULL};
static const char *const MLPS[] = {"gelu", "swiglu", NULL};
static const char *const PRECISIONS[] = {
    "fp32", "bf16", "fp16", "fp8", "int8", "amp-fp16", "amp-bf16", NULL};

static int invalid(const char *field, const char *wanted) {
    return fail(EOMT_WRONG_MODEL, "The model description is invalid: `%s` must be %s.", field,
                wanted);
}

static int index_of(const char *value, const char *const *names) {
    for (int i = 0; value && names[i]; i++)
        if (is_text(value, names[i])) return i;
    return -1;
}

/* Check that a value is an object that has only these fields. */
static int check_object(const char *value, const char *const *fields, const char *name) {
    if (!value || kind_of(value) != '{') return invalid(name, "an object");
    for (const char *key = first_entry(value); key; key = next_entry(value, key))
        if (index_of(key, fields) < 0)
            return fail(EOMT_WRONG_MODEL,
                        "The model description is invalid: `%s` has an unknown field.", name);
    return EOMT_OK;
}

static int read_number(const char *object, const char *field, int minimum, int64_t maximum,
                       int32_t *number) {
    const char *value = find(object, field);
    int64_t found;
    if (!value || !read_integer(value, minimum, maximum, &found)) {
        if (maximum > INT32_MAX) return invalid(field, "an integer that is not negative");
        return fail(EOMT_WRONG_MODEL,
                    "The model description is invalid: `%s` must be an integer from %d to %d.",
                    field, minimum, (int)maximum);
    }
    if (number) *number = (int32_t)found;
    return EOMT_OK;
}

static int read_name(const char *object, const char *field, const char *const *names,
                     int32_t *index) {
    const int found = index_of(find(object, field), names);
    if (found < 0) return invalid(field, "one of the known names");
    if (index) *index = found;
    return EOMT_OK;
}

static int check_text(const char *value, int minimum, int maximum) {
    return value && within(read_text(value, NULL, NULL), minimum, maximum);
}

/* Copy a checked string behind the texts so far. */
static const char *keep_text(const char *value, char **free_text) {
    const char *kept = *free_text;
    size_t bytes;
    read_text(value, *free_text, &bytes);
    *free_text += bytes;
    return kept;
}

/* Read a list of `count` integers. Return whether it is one. */
static int read_integers(const char *list, int count, int minimum, int maximum, int64_t *numbers) {
    if (!list || kind_of(list) != '[') return 0;
    int found = 0;
    for (const char *at = first_entry(list); at; at = next_entry(list, at), found++)
        if (found == count || !read_integer(at, minimum, maximum, &numbers[found])) return 0;
    return found == count;
}

static int read_sizes(const char *object, eomt_model *model) {
    int64_t size[2];
    int32_t patch, blocks, upscale;
    if (!read_integers(find(object, "image_size"), 2, MIN_SIDE, MAX_INPUT_SIDE, size))
        return invalid("image_size", "two integers from 8 to 16384");
    if (read_number(object, "patch_size", 1, 1024, &patch) ||
        read_number(object, "num_queries", 1, MAX_CLASSES, &model->queries) ||
        read_number(object, "num_blocks", 0, 1024, &blocks) ||
        read_number(object, "num_upscale", 0, 10, &upscale))
        return EOMT_WRONG_MODEL;
    model->height = (int32_t)size[0], model->width = (int32_t)size[1];
    if (model->height % patch || model->width % patch)
        return invalid("image_size", "a multiple of `patch_size`");
    if (1 << upscale > patch) return invalid("num_upscale", "at most log2 of `patch_size`");
    model->mask_height = model->height / patch << upscale;
    model->mask_width = model->width / patch << upscale;
    if ((int64_t)model->queries * model->mask_height * model->mask_width > MAX_MASK_LOGITS)
        return invalid("num_queries", "smaller: there must be at most 2^31 mask logits");
    return EOMT_OK;
}

static int read_class(const char *value, int id, Class *info, char **free_text) {
    static const char *const wanted[] = {"its position in the list", "printable text of at most 255 characters",
                                         "true or false", "three integers from 0 to 255"};
    int64_t number, color[3];
    if (check_object(value, CLASS_FIELDS, "classes")) return EOMT_WRONG_MODEL;
    const char *name = find(value, "name"), *thing = find(value, "thing");
    const char *found = find(value, "id");
    const int wrong = !found || !read_integer(found, id, id, &number) ? 0
                    : !check_text(name, 0, MAX_NAME) ? 1
                    : !thing || (kind_of(thing) != 't' && kind_of(thing) != 'f') ? 2
                    : !read_integers(find(value, "color"), 3, 0, 255, color) ? 3 : -1;
    if (wrong >= 0)
        return fail(EOMT_WRONG_MODEL,
                    "The model description is invalid: `classes[%d].%s` must be %s.", id,
                    CLASS_FIELDS[wrong], wanted[wrong]);
    info->name = keep_text(name, free_text);
    info->thing = kind_of(thing) == 't';
    for (int i = 0; i < 3; i++) info->color[i] = (uint8_t)color[i];
    return EOMT_OK;
}

static int read_classes(const char *list, eomt_model *model, char **free_text) {
    int64_t count = 0;
    if (list && kind_of(list) == '[')
        for (const char *at = first_entry(list); at; at = next_entry(list, at)) count++;
    if (!within(count, 1, MAX_CLASSES)) return invalid("classes", "a list of 1 to 16384 classes");
    model->classes = allocate(count, sizeof(Class));
    if (!model->classes) return kernel_error(NO_MEMORY);
    const char *at = first_entry(list);
    for (int id = 0; at; at = next_entry(list, at), id++) {
        if (read_class(at, id, &model->classes[id], free_text)) return EOMT_WRONG_MODEL;
        model->class_count = id + 1;
    }
    return EOMT_OK;
}

static int read_thresholds(const char *value, eomt_model *model) {
    static const double defaults[] = {0.8, 0.5, 0.8};
    if (check_object(value, THRESHOLDS, "thresholds")) return EOMT_WRONG_MODEL;
    for (int i = 0; i < 3; i++) {
        const char *share = find(value, THRESHOLDS[i]);
        model->thresholds[i] = defaults[i];
        if (share && !read_share(share, &model->thresholds[i]))
            return invalid(THRESHOLDS[i], "a number from 0 to 1");
    }
    return EOMT_OK;
}

/* Facts of the network, which are checked but not kept. */
static int check_facts(const char *object) {
    const char *backbone = find(object, "backbone"), *provenance = find(object, "provenance");
    if (check_object(backbone, BACKBONE_FIELDS, "backbone")) return EOMT_WRONG_MODEL;
    if (!check_text(find(backbone, "family"), 1, MAX_NAME))
        return invalid("backbone.family", "printable text of 1 to 255 characters");
    if (read_number(backbone, "width", 1, 1 << 20, NULL) ||
        read_number(backbone, "depth", 1, 1024, NULL) ||
        read_number(backbone, "heads", 1, 1 << 16, NULL) ||
        read_name(backbone, "mlp", MLPS, NULL) ||
        read_number(backbone, "registers", 0, 1024, NULL) ||
        read_number(backbone, "parameters", 0, MAX_PARAMETERS, NULL))
        return EOMT_WRONG_MODEL;
    if (!provenance) return EOMT_OK;
    if (kind_of(provenance) != '{') return invalid("provenance", "an object");
    int count = 0;
    for (const char *key = first_entry(provenance); key; key = next_entry(provenance, key))
        if (++count > MAX_ENTRIES || !check_text(key, 0, MAX_WORDS) ||
            !check_text(value_of(key), 0, MAX_WORDS))
            return invalid("provenance", "an object of at most 1000 printable texts");
    return EOMT_OK;
}

static int read_model(const char *object, eomt_model *model, char *free_text) {
    static const char *const key = "schema_version";
    const char *name = find(object, "name"), *batch = find(object, "batch");
    const char *schema = find(object, key), *precision = find(object, "precision");
    int64_t version, number = 0;
    if (schema && read_integer(schema, INT32_MIN, INT32_MAX, &version) && version != SCHEMA)
        return fail(EOMT_WRONG_MODEL,
                    "The model description has schema %d, this library reads schema %d.",
                    (int)version, SCHEMA);
    if (check_object(object, FIELDS, "the description") ||
        read_number(object, key, SCHEMA, SCHEMA, NULL))
        return EOMT_WRONG_MODEL;
    if (!check_text(name, 1, MAX_NAME))
        return invalid("name", "printable text of 1 to 255 characters");
    if (precision && index_of(precision, PRECISIONS) < 0)
        return invalid("precision", "one of the known names");
    if (batch && kind_of(batch) != 'n' && !read_integer(batch, 1, MAX_BATCH, &number))
        return invalid("batch", "an integer from 1 to 65536, or null");
    if (read_name(object, "task", TASKS, &model->task) ||
        read_name(object, "resize", RULES, &model->resize) || read_sizes(object, model) ||
        read_thresholds(find(object, "thresholds"), model) || check_facts(object))
        return EOMT_WRONG_MODEL;
    if (model->resize != (model->task == EOMT_SEMANTIC ? EOMT_WINDOWS : EOMT_LETTERBOX))
        return invalid("resize", "windows for a semantic model, letterbox for others");
    model->batch = (int32_t)number;
    model->name = keep_text(name, &free_text);
    model->precision = PRECISIONS[precision ? index_of(precision, PRECISIONS) : 0];
    return read_classes(find(object, "classes"), model, &free_text);
}

int eomt_model_read(const char *json, size_t bytes, eomt_model **model) {
    if (model) *model = NULL;
    if (!json || !model) return fail(EOMT_WRONG_ARGUMENT, "eomt_model_read needs json and model.");
    const char *problem = bytes > MAX_LENGTH ? "it is too large" : check_json(json, bytes);
    if (problem)
        return fail(EOMT_WRONG_MODEL, "The model description cannot be read: %s.", problem);
    const char *object = first_value(json), *spec = find(object, "spec");
    eomt_model *made = allocate(1, sizeof *made);
    if (!made) return kernel_error(NO_MEMORY);
    *made = (eomt_model){.texts = allocate((int64_t)bytes, 1)};
    /* The description of an engine contains that of its model. */
    const int code = !made->texts ? kernel_error(NO_MEMORY)
                                  : read_model(spec && kind_of(spec) == '{' ? spec : object, made, made->texts);
    if (code) {
        eomt_model_free(made);
        return code;
    }
    *model = made;
    return EOMT_OK;
}

void eomt_model_free(eomt_model *model) {
    if (!model) return;
    free(model->texts), free(model->classes);
    free(model);
}
