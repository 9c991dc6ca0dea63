/* In a static library, all names are visible to the program that it is linked into. So those of
   internal functions get a prefix, too. */
#pragma once

#define any_not_finite eomt_any_not_finite
#define check_json eomt_check_json
#define classify_pixels eomt_classify_pixels
#define fail eomt_fail
#define fill_image_table eomt_fill_image_table
#define fill_spans eomt_fill_spans
#define fill_taps eomt_fill_taps
#define find eomt_find
#define first_entry eomt_first_entry
#define first_value eomt_first_value
#define free_resize eomt_free_resize
#define free_runs eomt_free_runs
#define image_taps eomt_image_taps
#define is_text eomt_is_text
#define kernel_error eomt_kernel_error
#define kernel_version eomt_kernel_version
#define kind_of eomt_kind_of
#define label_segments eomt_label_segments
#define make_labels eomt_make_labels
#define make_resize eomt_make_resize
#define measure_instances eomt_measure_instances
#define next_entry eomt_next_entry
#define paint_panoptic eomt_paint_panoptic
#define read_integer eomt_read_integer
#define read_share eomt_read_share
#define read_text eomt_read_text
#define segment_instances eomt_segment_instances
#define segment_panoptic eomt_segment_panoptic
#define segment_semantic eomt_segment_semantic
#define softmax eomt_softmax
#define value_of eomt_value_of
