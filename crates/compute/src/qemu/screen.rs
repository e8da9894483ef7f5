//! A screenshot as a PNG, from a QEMU that may only know PPM.

use std::fs;

use qapi::qmp::{ImageFormat, screendump};

use super::qmp::Qmp;
use crate::directory::{MachineDirectory, SCREEN};
use crate::error::ComputeError;

/// Takes what the screen shows.
pub(crate) async fn take(directory: &MachineDirectory, qmp: &Qmp) -> Result<Vec<u8>, ComputeError> {
    let dump = |format| screendump { device: None, head: None, format, filename: SCREEN.to_owned() };
    // QEMU before 7.1 does not know that there are formats.
    if let Err(error) = qmp.ask(dump(Some(ImageFormat::png))).await {
        tracing::debug!(%error, "no screenshot as PNG, trying PPM");
        qmp.ask(dump(None)).await?;
    }
    let path = directory.file(SCREEN);
    let image = fs::read(&path).map_err(ComputeError::io("read", &path))?;
    fs::remove_file(&path).map_err(ComputeError::io("remove", &path))?;
    png_of(image).map_err(|why| ComputeError::Screenshot { machine: directory.machine, why })
}

/// What QEMU wrote, PNG or PPM, as a PNG.
pub(crate) fn png_of(image: Vec<u8>) -> Result<Vec<u8>, String> {
    if image.starts_with(b"P6") { png_of_ppm(&image) } else { Ok(image) }
}

/// Turns a PPM (P6, 8 bits) into a PNG.
fn png_of_ppm(image: &[u8]) -> Result<Vec<u8>, String> {
    // "P6 WIDTH HEIGHT 255" with any space between, then a single space, then the pixels.
    let mut fields = Vec::new();
    let mut at = 0;
    while fields.len() < 4 {
        let rest = image.get(at..).ok_or("it ends in its header")?;
        let start =
            rest.iter().position(|byte| !byte.is_ascii_whitespace()).ok_or("it ends in its header")?;
        let len = rest[start..].iter().position(u8::is_ascii_whitespace).ok_or("it ends in its header")?;
        fields.push(String::from_utf8_lossy(&rest[start..start + len]).into_owned());
        at += start + len;
    }
    let number = |field: &str| field.parse::<u32>().map_err(|_| format!("{field:?} is no number"));
    let (width, height) = (number(&fields[1])?, number(&fields[2])?);
    let pixels = image.get(at + 1..).unwrap_or_default();
    let mut png = Vec::new();
    let mut encoder = png::Encoder::new(&mut png, width, height);
    encoder.set_color(png::ColorType::Rgb);
    encoder.set_depth(png::BitDepth::Eight);
    let written = encoder.write_header().and_then(|mut writer| {
        writer.write_image_data(pixels)?;
        writer.finish()
    });
    written.map_err(|error| error.to_string())?;
    Ok(png)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ppm_becomes_a_png_with_the_same_pixels() {
        let mut ppm = b"P6\n2 2\n255\n".to_vec();
        let pixels = [10, 20, 30, 32, 50, 60, 70, 80, 90, 9, 110, 120];
        ppm.extend(pixels);
        let png = png_of_ppm(&ppm).unwrap();
        let mut reader = png::Decoder::new(std::io::Cursor::new(png)).read_info().unwrap();
        let mut decoded = vec![0; reader.output_buffer_size().unwrap()];
        let info = reader.next_frame(&mut decoded).unwrap();
        assert_eq!((info.width, info.height), (2, 2));
        assert_eq!(decoded, pixels);
    }

    #[test]
    fn a_ppm_that_is_cut_off_is_refused() {
        let ppm = b"P6 2 2 255\n123456789abc".to_vec();
        for len in 0..ppm.len() {
            assert!(png_of_ppm(&ppm[..len]).is_err(), "{len}");
        }
    }
}
