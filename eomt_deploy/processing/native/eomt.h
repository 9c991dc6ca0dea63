/* eomt.h: EoMT segmentation in C, without the network itself.

   The library reads the description of an exported model, turns images into network inputs, and
   turns network outputs into label maps, segments and masks. Any inference engine can run the
   network between the two. The library has no dependencies except the C library, reads no files,
   starts no threads, and has no state except the text of the last error, which each thread has for
   itself.

   Order of calls for one image:

       eomt_model_read                    once per model
       eomt_geometry_plan                 once per size of images
       eomt_preprocess                    then run the network on its N inputs
       eomt_postprocess                   then read the result with the getters
       eomt_result_free, eomt_geometry_free, eomt_model_free

   Conventions
   - Sizes are in pixels. Arrays are contiguous and row-major: [H, W] has rows of W values.
   - A function that returns `int` returns EOMT_OK (0) or a negative error code; then nothing was
     created and output arguments are unchanged or NULL. eomt_error_message() describes the error.
   - Getters cannot fail. For a NULL handle or an index out of range they return 0, NULL or NaN, as
     described.
   - Objects are created by the library and freed by the caller with the eomt_*_free function of
     their type, which accepts NULL. A pointer that a getter returns belongs to its object and is
     valid until that object is freed. Buffers that are passed belong to the caller, and are not
     used after the call. A geometry and a result do not refer to the objects that made them, so
     objects can be freed in any order.
   - Threads may use different objects at the same time, and may share objects: no function changes
     a model, geometry or result after its creation.
   - Only pointers, 32-bit integers, size_t and doubles cross the interface, so that JavaScript can
     call the WebAssembly build. There, size_t and pointers have 32 bits. */
#ifndef EOMT_H
#define EOMT_H

#include <stddef.h>
#include <stdint.h>

/* Increased when a declaration of this file changes in an incompatible manner. */
#define EOMT_ABI_VERSION 1

#if defined(EOMT_STATIC)
#define EOMT_API
#elif defined(_WIN32) && defined(EOMT_BUILD)
#define EOMT_API __declspec(dllexport)
#elif defined(_WIN32)
#define EOMT_API __declspec(dllimport)
#else
#define EOMT_API __attribute__((visibility("default")))
#endif

#ifdef __cplusplus
extern "C" {
#endif

/* Key of the description in the metadata of an ONNX model (metadata_props). */
#define EOMT_METADATA_KEY "eomt_deploy.spec"

/* Error codes. */
enum {
    EOMT_OK = 0,
    EOMT_NO_MEMORY = -1,      /* an allocation failed */
    EOMT_WRONG_ARGUMENT = -2, /* an argument is NULL, out of range, or does not fit the others */
    EOMT_WRONG_MODEL = -3,    /* the description is not JSON, or a field is missing or invalid */
    EOMT_WRONG_IMAGE = -4,    /* the image is too large, or its aspect ratio is too extreme */
    EOMT_NOT_FINITE = -5      /* a logit is infinite or NaN */
};

/* Tasks. */
enum { EOMT_SEMANTIC = 0, EOMT_INSTANCE = 1, EOMT_PANOPTIC = 2 };

/* Resize rules. Letterbox: one network input, which contains the image at its top left and 0
   elsewhere. Windows: one or more overlapping network inputs that cover the image. */
enum { EOMT_LETTERBOX = 0, EOMT_WINDOWS = 1 };

/* Pixel formats: the order of the bytes of a pixel. The fourth byte is ignored. */
enum { EOMT_RGB = 0, EOMT_BGR = 1, EOMT_RGBA = 2, EOMT_BGRA = 3 };

/* The release of Pillow whose bytes eomt_preprocess reproduces. Releases differ in the order of the
   two passes for tall images, which changes some bytes by 1. */
enum {
    EOMT_PILLOW_13 = 0,   /* 13.0 and later */
    EOMT_PILLOW_12_2 = 1, /* 12.2 to 12.x */
    EOMT_PILLOW_11 = 2    /* before 12.2 */
};

/* Thresholds, see eomt_postprocess. */
enum { EOMT_SCORE = 0, EOMT_MASK = 1, EOMT_OVERLAP = 2 };

typedef struct eomt_model eomt_model;       /* the description of a model */
typedef struct eomt_geometry eomt_geometry; /* how images of one size become network inputs */
typedef struct eomt_result eomt_result;     /* the segmentation of one image */

/* ---- Library ---------------------------------------------------------------------------- */

/* The EOMT_ABI_VERSION that the library was built with. Compare it with the header's. */
EOMT_API int32_t eomt_abi_version(void);

/* The message of the last error in this thread, in English, UTF-8; "" if there was none. The text
   is valid until the next error in this thread. */
EOMT_API const char *eomt_error_message(void);

/* Memory for callers that have no allocator, such as JavaScript: at least `bytes` bytes, aligned
   for any type, not initialised. NULL if there is not enough memory. */
EOMT_API void *eomt_alloc(size_t bytes);

/* Free memory of eomt_alloc. Accepts NULL. */
EOMT_API void eomt_free(void *memory);

/* ---- Description of a model -------------------------------------------------------------- */

/* Read the description of a model: the value of the ONNX metadata entry EOMT_METADATA_KEY, or the
   content of the file <model>.json beside an engine.

   In: json [bytes], UTF-8, not necessarily terminated by 0; at most 8 MiB.
   Out: *model, to be freed with eomt_model_free; NULL after an error.
   Errors: EOMT_WRONG_MODEL (the message names the field), EOMT_WRONG_ARGUMENT, EOMT_NO_MEMORY. */
EOMT_API int eomt_model_read(const char *json, size_t bytes, eomt_model **model);
EOMT_API void eomt_model_free(eomt_model *model);

/* Name of the model and precision of its graph (e.g. "fp16"), UTF-8; NULL without a model. */
EOMT_API const char *eomt_model_name(const eomt_model *model);
EOMT_API const char *eomt_model_precision(const eomt_model *model);

/* EOMT_SEMANTIC, EOMT_INSTANCE or EOMT_PANOPTIC; -1 without a model. */
EOMT_API int32_t eomt_model_task(const eomt_model *model);

/* EOMT_LETTERBOX or EOMT_WINDOWS; -1 without a model. */
EOMT_API int32_t eomt_model_resize(const eomt_model *model);

/* Sizes of the tensors. Input `images`: uint8 [N, height, width, 3], RGB. Outputs: `class_logits`
   [N, queries, classes + 1], the last column is "no object"; `mask_logits`
   [N, queries, mask_height, mask_width]. All are 0 without a model. */
EOMT_API int32_t eomt_model_height(const eomt_model *model);
EOMT_API int32_t eomt_model_width(const eomt_model *model);
EOMT_API int32_t eomt_model_mask_height(const eomt_model *model);
EOMT_API int32_t eomt_model_mask_width(const eomt_model *model);
EOMT_API int32_t eomt_model_queries(const eomt_model *model);
EOMT_API int32_t eomt_model_classes(const eomt_model *model); /* without "no object" */

/* The fixed batch size of the graph; 0 if it is dynamic, or without a model. */
EOMT_API int32_t eomt_model_batch(const eomt_model *model);

/* Default threshold of the model, from 0 to 1: EOMT_SCORE, EOMT_MASK or EOMT_OVERLAP; else NaN. */
EOMT_API double eomt_model_threshold(const eomt_model *model, int32_t threshold);

/* Name of a class, UTF-8; NULL if class_id is not from 0 to classes - 1. */
EOMT_API const char *eomt_model_class_name(const eomt_model *model, int32_t class_id);

/* 1 if the class is a thing (countable), 0 if it is stuff; -1 if class_id is out of range. */
EOMT_API int32_t eomt_model_class_is_thing(const eomt_model *model, int32_t class_id);

/* Colour of a class as 0xRRGGBB; -1 if class_id is out of range. */
EOMT_API int32_t eomt_model_class_color(const eomt_model *model, int32_t class_id);

/* ---- Pre-processing ---------------------------------------------------------------------- */

/* Plan how images of height x width pixels become inputs of the model.

   Out: *geometry, to be freed with eomt_geometry_free; NULL after an error.
   Errors: EOMT_WRONG_IMAGE (a side is below 1, there are 2^32 pixels or more, or the aspect ratio is
   too extreme), EOMT_WRONG_ARGUMENT, EOMT_NO_MEMORY. */
EOMT_API int eomt_geometry_plan(const eomt_model *model, int32_t height, int32_t width,
                                eomt_geometry **geometry);
EOMT_API void eomt_geometry_free(eomt_geometry *geometry);

/* Number N of network inputs: 1, or the number of windows. 0 without a geometry. */
EOMT_API int32_t eomt_geometry_inputs(const eomt_geometry *geometry);

/* Size of the image, and of the image after it was resized. 0 without a geometry. */
EOMT_API int32_t eomt_geometry_height(const eomt_geometry *geometry);
EOMT_API int32_t eomt_geometry_width(const eomt_geometry *geometry);
EOMT_API int32_t eomt_geometry_scaled_height(const eomt_geometry *geometry);
EOMT_API int32_t eomt_geometry_scaled_width(const eomt_geometry *geometry);

/* Position of a window in the resized image: its first row if the axis is 0, its first column if
   the axis is 1. Both are 0 for a letterbox; the axis of a letterbox is 1. */
EOMT_API int32_t eomt_geometry_axis(const eomt_geometry *geometry);
EOMT_API int32_t eomt_geometry_window_start(const eomt_geometry *geometry, int32_t window);

/* Size in bytes of all network inputs: N * height * width * 3. 0 without a geometry. */
EOMT_API size_t eomt_geometry_input_bytes(const eomt_geometry *geometry);

/* Resize an image (Pillow's bilinear filter, antialiased when shrinking), and pad it or cut it into
   windows. The bytes are equal to those of Python's Processor.preprocess.

   In: pixels uint8 [height, width, channels], rows `stride` bytes apart; format, see EOMT_RGB;
   pillow, see EOMT_PILLOW_13.
   Out: inputs uint8 [N, H, W, 3], RGB, H and W of the model; input_bytes is the size of this
   buffer, and must be eomt_geometry_input_bytes.
   Errors: EOMT_WRONG_ARGUMENT, EOMT_NO_MEMORY. */
EOMT_API int eomt_preprocess(const eomt_geometry *geometry, const uint8_t *pixels, size_t stride,
                             int32_t format, int32_t pillow, uint8_t *inputs,
                             size_t input_bytes);

/* ---- Post-processing --------------------------------------------------------------------- */

/* Turn the network outputs for one image into its segmentation, at the size of the image.

   In: class_logits FP32 [N, Q, C + 1] and mask_logits FP32 [N, Q, h, w]; class_count and mask_count
   are their numbers of values, and are compared with those of the model and the geometry.
   Thresholds are from 0 to 1; a negative value stands for the model's default. A task ignores the
   thresholds that it does not have.
   - score: panoptic: the class score of a query must exceed it; instance: minimum final score.
   - mask: panoptic: minimum mask probability of a pixel.
   - overlap: panoptic: minimum fraction of its mask that a query must win.
   Out: *result, to be freed with eomt_result_free; NULL after an error.
   Errors: EOMT_NOT_FINITE, EOMT_WRONG_ARGUMENT, EOMT_NO_MEMORY. */
EOMT_API int eomt_postprocess(const eomt_model *model, const eomt_geometry *geometry,
                              const float *class_logits, size_t class_count,
                              const float *mask_logits, size_t mask_count, double score,
                              double mask, double overlap, eomt_result **result);
EOMT_API void eomt_result_free(eomt_result *result);

/* The task of the model, see EOMT_SEMANTIC; -1 without a result. Size of the image; 0 without. */
EOMT_API int32_t eomt_result_task(const eomt_result *result);
EOMT_API int32_t eomt_result_height(const eomt_result *result);
EOMT_API int32_t eomt_result_width(const eomt_result *result);

/* The label of each pixel [height, width]: unsigned integers of eomt_result_label_bytes bytes.
   Semantic: class ids. Panoptic: number of the segment + 1, or 0 for no segment. Instance: NULL and
   0 bytes, because instances overlap. The type is 1 byte if all possible labels fit, else 2. */
EOMT_API const void *eomt_result_labels(const eomt_result *result);
EOMT_API int32_t eomt_result_label_bytes(const eomt_result *result);

/* Number of segments: 0 for semantic. Instances are sorted by score, the highest first; panoptic
   segments are in the order of their queries. */
EOMT_API int32_t eomt_result_count(const eomt_result *result);

/* Class id of a segment; -1 if `segment` is not from 0 to count - 1. */
EOMT_API int32_t eomt_result_class(const eomt_result *result, int32_t segment);

/* Score of a segment, from 0 to 1: panoptic: class score; instance: class score times the mean
   mask probability inside the mask. NaN if `segment` is out of range. */
EOMT_API double eomt_result_score(const eomt_result *result, int32_t segment);

/* Number of pixels of a segment; 0 if `segment` is out of range. */
EOMT_API uint32_t eomt_result_area(const eomt_result *result, int32_t segment);

/* Bounding box of a segment: int32 [4], (x0, y0, x1, y1), x1 and y1 exclusive; zeros for an empty
   mask. NULL if `segment` is out of range. */
EOMT_API const int32_t *eomt_result_box(const eomt_result *result, int32_t segment);

/* The mask of an instance as runs: uint32 [run_count, 2], start and end (exclusive) of each run of
   pixels, as indices into the flattened image, in ascending order. NULL and 0 for panoptic
   segments, for empty masks, and if `segment` is out of range. */
EOMT_API const uint32_t *eomt_result_runs(const eomt_result *result, int32_t segment);
EOMT_API uint32_t eomt_result_run_count(const eomt_result *result, int32_t segment);

/* Write the mask of a segment (panoptic or instance).

   Out: mask uint8 [height, width], 1 inside and 0 outside; mask_bytes is the size of this buffer,
   and must be height * width.
   Errors: EOMT_WRONG_ARGUMENT. */
EOMT_API int eomt_result_mask(const eomt_result *result, int32_t segment, uint8_t *mask,
                              size_t mask_bytes);

#ifdef __cplusplus
}
#endif
#endif
