//! Holds `check_batch` and `BatchRecords` together: every record of an accepted batch decodes, and the batch built again
//! from the records has the same bytes.
//!
//! The first byte says how much of the input is put right first: random bytes hardly ever have two right checksums, and
//! what stands behind them is what should be tested.
#![no_main]

use bytes::Bytes;
use libfuzzer_sys::fuzz_target;
use tidelog_protocol::{
    BATCH_HEADER_LEN, BatchBuilder, BatchHeader, BatchRecords, Limits, check_batch, check_body, verify_content_crc,
};

fuzz_target!(|input: &[u8]| {
    let Some((&mend, bytes)) = input.split_first() else { return };
    let mut batch = bytes.to_vec();
    if mend & 1 != 0 {
        mend_header(&mut batch);
    }
    if mend & 2 != 0 {
        mend_checksums(&mut batch);
    }
    let batch = Bytes::from(batch);
    let limits = Limits::default();
    match check_batch(&batch, &limits) {
        Ok(header) => assert_eq!(built_again(&header, &batch, &limits), batch),
        // Not accepted: whatever comes out, nothing panics, and there is an end.
        Err(_) => {
            if let Ok(records) = BatchRecords::new(&batch) {
                let bound = records.header().count as usize;
                assert!(records.count() <= bound);
            }
        }
    }
});

fn built_again(header: &BatchHeader, batch: &Bytes, limits: &Limits) -> Bytes {
    assert!(verify_content_crc(batch));
    assert_eq!(header.encode(), batch[..BATCH_HEADER_LEN]);
    let mut builder = BatchBuilder::new();
    let mut sequences = Vec::new();
    for item in BatchRecords::new(batch).expect("an accepted batch opens") {
        let (sequence, record) = item.expect("every record of an accepted batch decodes");
        let mut body = Vec::new();
        record.encode_into(&mut body);
        assert_eq!(body.len(), record.encoded_len());
        assert_eq!(check_body(&body, limits), Ok(()));
        builder.push(&record, limits).expect("an accepted record is within the limits");
        sequences.push(sequence);
    }
    if header.is_anonymous() {
        builder.finish_anonymous(header.stream)
    } else if header.is_sparse() {
        builder.finish_sparse(header.stream, header.previous, &sequences).expect("accepted sequences rise")
    } else {
        builder.finish_dense(header.stream, header.first)
    }
}

/// Sets version, codec, reserved bytes and length right, and reduces count and flags to small ones.
fn mend_header(batch: &mut [u8]) {
    let Some(content_len) = batch.len().checked_sub(BATCH_HEADER_LEN) else { return };
    batch[4..6].copy_from_slice(&[1, 0]);
    batch[6] %= 3;
    batch[7] = 0;
    batch[9..12].fill(0);
    batch[12..16].copy_from_slice(&(content_len as u32).to_le_bytes());
    batch[52..56].fill(0);
    if batch[6] == 2 {
        batch[24..48].fill(0);
    }
}

/// Sets both checksums to those of the bytes.
fn mend_checksums(batch: &mut [u8]) {
    if batch.len() < BATCH_HEADER_LEN {
        return;
    }
    if let Ok(records) = BatchRecords::new(&Bytes::copy_from_slice(batch)) {
        if let Some(Ok((_, record))) = records.last() {
            batch[48..52].copy_from_slice(&record.crc().to_le_bytes());
        }
    }
    let crc = crc32fast::hash(&batch[4..]);
    batch[..4].copy_from_slice(&crc.to_le_bytes());
}
