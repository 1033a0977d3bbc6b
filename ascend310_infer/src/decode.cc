#include "decode.h"

#include <algorithm>
#include <csetjmp>
#include <cstdio>
#include <cstring>
#include <memory>
#include <string>

#include <jpeglib.h>
#include <png.h>

#include "error.h"
#include "image_files.h"

namespace ddrnet {
namespace {

// libjpeg and libpng report errors through longjmp, which must not skip a destructor: everything with one lives outside
// the functions that call setjmp, and those functions keep to plain data.

struct JpegErrors {
  jpeg_error_mgr manager;
  jmp_buf jump;
  char message[JMSG_LENGTH_MAX];
};

extern "C" {

void OnJpegError(j_common_ptr info) {
  auto* errors = reinterpret_cast<JpegErrors*>(info->err);
  info->err->format_message(info, errors->message);
  longjmp(errors->jump, 1);
}

void OnJpegMessage(j_common_ptr) {}

// The whole file is in memory, so wanting more means that it is cut off. FALSE suspends decoding, which the caller
// takes for an error; a file is thus complete or refused, as it is with Pillow.
boolean FillJpegBuffer(j_decompress_ptr) { return FALSE; }

void SkipJpegBytes(j_decompress_ptr info, long count) {
  if (count <= 0) return;
  jpeg_source_mgr* source = info->src;
  const size_t step = std::min(static_cast<size_t>(count), source->bytes_in_buffer);
  source->next_input_byte += step;
  source->bytes_in_buffer -= step;
}

void IgnoreJpegSource(j_decompress_ptr) {}

void OnPngError(png_structp png, png_const_charp message) {
  std::snprintf(static_cast<char*>(png_get_error_ptr(png)), JMSG_LENGTH_MAX, "%s", message);
  png_longjmp(png, 1);
}

void OnPngWarning(png_structp, png_const_charp) {}

struct PngInput {
  const uint8_t* next;
  size_t left;
};

void ReadPngBytes(png_structp png, png_bytep target, png_size_t count) {
  auto* input = static_cast<PngInput*>(png_get_io_ptr(png));
  if (count > input->left) png_error(png, "the file is cut off");
  std::memcpy(target, input->next, count);
  input->next += count;
  input->left -= count;
}

}  // extern "C"

struct JpegDecoder {
  jpeg_decompress_struct info{};
  JpegErrors errors{};
  jpeg_source_mgr source{};

  JpegDecoder() {
    info.err = jpeg_std_error(&errors.manager);
    errors.manager.error_exit = OnJpegError;
    errors.manager.output_message = OnJpegMessage;
  }
  ~JpegDecoder() { jpeg_destroy_decompress(&info); }
  JpegDecoder(const JpegDecoder&) = delete;
  JpegDecoder& operator=(const JpegDecoder&) = delete;

  bool Cut() {
    std::snprintf(errors.message, sizeof(errors.message), "the file is cut off");
    return false;
  }

  bool ReadHeader(const uint8_t* data, size_t size) {
    if (setjmp(errors.jump)) return false;
    jpeg_create_decompress(&info);
    source.next_input_byte = data;
    source.bytes_in_buffer = size;
    source.init_source = IgnoreJpegSource;
    source.fill_input_buffer = FillJpegBuffer;
    source.skip_input_data = SkipJpegBytes;
    source.resync_to_restart = jpeg_resync_to_restart;
    source.term_source = IgnoreJpegSource;
    info.src = &source;
    return jpeg_read_header(&info, TRUE) == JPEG_HEADER_OK || Cut();
  }

  // Four components come out as the file has them, three and one as RGB with a fourth byte.
  bool Start() {
    if (setjmp(errors.jump)) return false;
    info.out_color_space = info.num_components == 4 ? JCS_CMYK : JCS_EXT_RGBX;
    info.dct_method = JDCT_ISLOW;
    info.do_fancy_upsampling = TRUE;
    return jpeg_start_decompress(&info) || Cut();
  }

  bool ReadRows(Image* image) {
    if (setjmp(errors.jump)) return false;
    while (info.output_scanline < info.output_height) {
      JSAMPROW row = image->Row(static_cast<int>(info.output_scanline));
      if (jpeg_read_scanlines(&info, &row, 1) == 0) return Cut();
    }
    jpeg_finish_decompress(&info);  // as Pillow does: what follows may still be an error, its absence is none
    return true;
  }
};

// (a * b) / 255, rounded, for bytes.
int MultiplyBytes(int a, int b) {
  const int product = a * b + 128;
  return (product + (product >> 8)) >> 8;
}

// CMYK as Adobe writes it, inverted: each channel holds 255 minus the ink.
void ConvertAdobeCmyk(Image* image) {
  for (size_t i = 0; i < image->pixels.size(); i += 4) {
    uint8_t* pixel = image->pixels.data() + i;
    const int light = pixel[3];  // 255 minus black
    for (int channel = 0; channel < 3; ++channel) {
      const int value = light - MultiplyBytes(255 - pixel[channel], light);
      pixel[channel] = static_cast<uint8_t>(value < 0 ? 0 : value);
    }
  }
}

void DecodeJpeg(const std::vector<uint8_t>& file, Image* image) {
  const std::vector<uint8_t> bare = BareJpeg(file);
  auto decoder = std::make_unique<JpegDecoder>();
  if (!decoder->ReadHeader(bare.data(), bare.size())) throw ImageError(decoder->errors.message);
  const int components = decoder->info.num_components;
  if (!decoder->Start()) throw ImageError(decoder->errors.message);
  image->Allocate(static_cast<int>(decoder->info.output_width), static_cast<int>(decoder->info.output_height));
  if (!decoder->ReadRows(image)) throw ImageError(decoder->errors.message);
  if (components == 4) ConvertAdobeCmyk(image);
}

struct PngDecoder {
  char message[JMSG_LENGTH_MAX] = "libpng has no memory";
  PngInput input{};
  png_structp png = nullptr;
  png_infop info = nullptr;

  PngDecoder() {
    png = png_create_read_struct(PNG_LIBPNG_VER_STRING, message, OnPngError, OnPngWarning);
    if (png != nullptr) info = png_create_info_struct(png);
  }
  ~PngDecoder() { png_destroy_read_struct(&png, &info, nullptr); }
  PngDecoder(const PngDecoder&) = delete;
  PngDecoder& operator=(const PngDecoder&) = delete;

  bool ReadHeader(const uint8_t* data, size_t size) {
    if (png == nullptr || info == nullptr || setjmp(png_jmpbuf(png))) return false;
    input = {data, size};
    png_set_user_limits(png, PNG_UINT_31_MAX, PNG_UINT_31_MAX);  // there is a limit of our own
    png_set_read_fn(png, &input, ReadPngBytes);
    png_read_info(png, info);
    return true;
  }

  // Whatever the file holds becomes four bytes a pixel; alpha is left unused, not blended in.
  bool Start() {
    if (setjmp(png_jmpbuf(png))) return false;
    if (png_get_color_type(png, info) == PNG_COLOR_TYPE_GRAY) {
      png_set_scale_16(png);
    } else {
      png_set_strip_16(png);
    }
    png_set_expand(png);
    png_set_gray_to_rgb(png);
    png_set_filler(png, 0xFF, PNG_FILLER_AFTER);
    png_set_interlace_handling(png);
    png_read_update_info(png, info);
    return true;
  }

  bool ReadRows(png_bytep* rows) {
    if (setjmp(png_jmpbuf(png))) return false;
    png_read_image(png, rows);
    return true;
  }
};

void DecodePng(const std::vector<uint8_t>& file, Image* image) {
  const std::vector<uint8_t> bare = BarePng(file);
  auto decoder = std::make_unique<PngDecoder>();
  if (!decoder->ReadHeader(bare.data(), bare.size())) throw ImageError(decoder->message);
  const auto width = png_get_image_width(decoder->png, decoder->info);
  const auto height = png_get_image_height(decoder->png, decoder->info);
  if (!decoder->Start()) throw ImageError(decoder->message);
  if (png_get_rowbytes(decoder->png, decoder->info) != static_cast<size_t>(width) * 4) {
    throw ImageError("a PNG of an unknown kind");
  }
  image->Allocate(static_cast<int>(width), static_cast<int>(height));
  std::vector<png_bytep> rows(height);
  for (size_t y = 0; y < rows.size(); ++y) rows[y] = image->Row(static_cast<int>(y));
  if (!decoder->ReadRows(rows.data())) throw ImageError(decoder->message);
}

}  // namespace

void DecodeImage(const std::vector<uint8_t>& file, Image* image) {
  switch (FormatOf(file)) {
    case ImageFormat::kJpeg: return DecodeJpeg(file, image);
    case ImageFormat::kPng: return DecodePng(file, image);
    default:
      throw ImageError(file.empty() ? "the file is empty"
                                    : "neither a JPEG nor a PNG file, nor has preprocess.py made a PNG of it");
  }
}

}  // namespace ddrnet
